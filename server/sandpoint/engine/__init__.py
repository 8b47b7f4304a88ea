"""The code that captures and restores a tree. It runs next to the tree and knows nothing of stores or clients."""
