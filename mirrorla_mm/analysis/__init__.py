"""What explains: figures of the method, FLOPs, tables and studies."""
