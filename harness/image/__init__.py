"""What an image holds: its list, its digest, its bill of materials, and a run checked in the image it names."""
