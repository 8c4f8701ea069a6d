"""What is kept on disk: run directories, score tables, fingerprints, files that appear whole or not at all."""
