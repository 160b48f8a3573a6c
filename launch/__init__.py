"""Where cells run: compose, check, freeze, dispatch, report. Nothing here imports torch; the children do."""
