"""A scanner and a participant made of numbers: what the demo shows and what every test of the line runs on.

``world`` draws pictures, ``visit`` plans which is shown when, ``features`` is what is seen in them; ``population``
makes people of ``fields`` over the cortex who answer to that, with ``trial_noise``, and ``participant`` puts one into a
scanner. ``head``, ``acquisition`` and ``render`` make volumes of that, ``mosaic`` writes them; ``scanner``
plays a simulated visit and ``replay`` a recorded one, both through ``playback``.
"""
