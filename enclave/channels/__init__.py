"""End-to-end channels between enclaves, through a coordinator that may do anything to the frames."""
