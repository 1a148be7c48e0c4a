"""The REST service: Ray Serve deployments, what they are asked and answer, and the page."""
