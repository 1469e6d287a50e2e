"""What services store, and where: metadata in SQL, bytes in S3."""
