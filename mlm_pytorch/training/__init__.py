"""From packs to a trained model: the recipe, the loop, and what survives a kill."""
