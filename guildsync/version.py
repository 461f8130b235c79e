"""The version of this guildsync; formats have versions of their own."""

VERSION = "0.1.0"
