"""`serve run serve.app:app`, and `serve run serve.app:demo` for the demo's model."""

from zar_ray.commands.demo_service import demo
from zar_ray.serving.application import app

__all__ = ["app", "demo"]
