"""The policy on the wire: the fast program, the engine around it, and the server."""
