"""The harness of `scripts/bench`: guildsync beside other tools, on one server, through one counting proxy."""
