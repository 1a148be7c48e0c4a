"""What the model looks at, for the report and the service."""
