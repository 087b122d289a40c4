"""One folder per runtime behind one contract."""
