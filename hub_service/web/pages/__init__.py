"""Server-rendered pages: everything that the API can do, for a browser."""
