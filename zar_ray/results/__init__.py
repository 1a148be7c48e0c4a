"""What runs find: cases, rows, metrics, statistics and the record, without printing, Ray or MLflow."""
