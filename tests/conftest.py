"""What holds for every test."""

from hypothesis import settings

# A busy machine must not fail a law: pytest's own timeout bounds each test.
settings.register_profile("mlserve", deadline=None)
settings.load_profile("mlserve")
