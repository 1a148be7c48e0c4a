"""Clients of the service; they load neither Ray nor PyTorch.

with Client("http://127.0.0.1:8000") as client:
    answer = client.classify("dance.mp4", ["dancing ballet", "zumba"])
    print(answer.after[0].label)

async with AsyncClient("http://127.0.0.1:8000") as client:
    answers = await asyncio.gather(*(client.classify(path, labels) for path in paths))
"""

from zar_ray.client.asynchronous import AsyncClient
from zar_ray.client.blocking import Client
from zar_ray.client.wire import Asked, ServiceError

__all__ = ["Asked", "AsyncClient", "Client", "ServiceError"]
