"""CSV bytes → objects in a bucket: completed and verified, or not there."""
