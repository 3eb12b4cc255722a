"""From packages, files and the hub to documents, and from documents to tokens. Uses `study`."""
