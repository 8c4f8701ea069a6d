"""`ost view`: look through a scored pool in a browser, on this machine alone, and mark rows."""
