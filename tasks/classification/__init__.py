"""Image classification: `python -m tasks.classification {fit,validate,test,predict}`."""
