"""Make candidates, collect teacher scores, train students."""
