"""The Celery app that Flower looks through: `celery -A packtrain.broker.flower_app:app flower`."""

from __future__ import annotations

from packtrain.broker.celery_app import make_app
from packtrain.broker.settings import load_settings

app = make_app(load_settings().broker_url(), name="flower", events=True)
# It chooses its client by the URL's scheme, which a transport of our own replaces by its name.
app.conf.update(broker_transport=None)
