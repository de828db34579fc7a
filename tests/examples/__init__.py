"""Models as other people write them, and the tests that train, save, load and serve each."""
