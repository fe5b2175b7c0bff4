"""What an image holds: its list, its digest, its parts and its bill of materials."""
