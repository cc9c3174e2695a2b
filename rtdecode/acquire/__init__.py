"""From files in the scanner's export folder to volumes in index order.

``source`` says what the rest of the line sees, ``watcher`` is the real thing, ``order`` holds volumes back
until their turn, ``dicom`` and ``nifti`` read one file each.
"""
