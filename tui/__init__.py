"""The app. Textual reads how often it may paint when it is imported, which is after this."""

import os

os.environ.setdefault("TEXTUAL_FPS", "120")  # an answer to a key waits 8 ms for its frame, not 16; no more is painted
