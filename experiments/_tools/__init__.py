"""What the experiments share; each file above this folder is one claim."""
