"""The main job, stage by stage: data, features, fit, ensemble, masks, submission, report."""
