"""Commands of the command line, a file each: `add` says what it takes, and it does it."""
