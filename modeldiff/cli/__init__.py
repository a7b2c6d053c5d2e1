"""The command line: parse, call a stage, print. No science and no file formats."""
