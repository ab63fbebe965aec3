"""What a person tries first: captions."""
