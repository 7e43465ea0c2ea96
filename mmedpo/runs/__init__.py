"""Run folders, ledgers of finished work and provenance: what makes long work resumable."""
