"""For people who extend hetrl: tests that every device must pass, and small random models and plans to try things on.

`hetrl.testing.devices` needs pytest; nothing else in hetrl imports it.
"""
