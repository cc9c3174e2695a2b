"""A scanner and a participant made of numbers: what the demo shows and what every test of the line runs on.

``world`` draws pictures, ``visit`` plans which is shown when, ``features`` and ``participant`` answer to
them, ``head``, ``acquisition`` and ``render`` make volumes of that, ``mosaic`` writes them; ``scanner``
plays a simulated visit and ``replay`` a recorded one, both through ``playback``.
"""
