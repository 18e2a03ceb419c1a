"""The command line: the table of commands, the one way in which they fail, and what their parsers share."""
