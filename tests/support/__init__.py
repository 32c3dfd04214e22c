"""What several test files use: servers, ledgers, files, and the command line as tests call it."""
