"""Where processes run: the only room that starts, observes or signals them."""
