"""The REST API as clients see it: its structs, its errors and the client that signs and verifies."""
