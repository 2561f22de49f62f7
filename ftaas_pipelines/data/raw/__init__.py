"""Raw files to raw rows: containers, work shards, and each row with the line it stands on."""
