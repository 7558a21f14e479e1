_base_ = 'mmdet::ssd/ssd300_coco.py'
