"""CSV bytes → objects in a bucket: complete and verified, or not visible."""
