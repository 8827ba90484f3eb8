"""What scripts/image is made of: packages and wheels in, one archive out."""
