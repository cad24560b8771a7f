"""Reports: what a build and what measured bundles come to, judged and rendered; what measures is in validation."""
