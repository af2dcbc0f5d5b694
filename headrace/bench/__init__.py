"""Measurements of servers, over HTTP, and of engines in this process, and how near each is to what the device allows.

- A load on a server: ``datasets`` draw requests, ``serve`` runs processes of ``load`` that send them (``client``,
  ``api``), ``measures`` and ``metrics`` make figures of what came back.
- Engines here: ``offline`` and ``startup``, with ``ranks`` and ``spread``.
- Many loads: ``sweep`` runs what ``experiment`` plans of ``parameters``, and ``capacity`` judges it; one load, and all
  about it: ``lab``. Both start a ``server`` and take a ``snapshot``.
- Results: ``files`` and ``reading``, from which ``plot`` and ``report`` show them.
- What hardware allows: ``limits`` is the arithmetic; ``roofline`` applies it to plans (``devices``, ``formats``,
  ``shares``, ``latent``), ``reached`` to results.
"""
