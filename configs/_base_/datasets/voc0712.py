# PASCAL VOC 2007 + 2012 and its metric, for configs whose twin on COCO is the stock one.
voc_parts = [
    dict(
        type='VOCDataset',
        data_root='data/VOCdevkit/',
        ann_file=f'VOC{year}/ImageSets/Main/trainval.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32, bbox_min_size=32))
    for year in (2007, 2012)
]
voc_test = dict(
    type='VOCDataset',
    data_root='data/VOCdevkit/',
    ann_file='VOC2007/ImageSets/Main/test.txt',
    data_prefix=dict(sub_data_root='VOC2007/'),
    test_mode=True)
voc_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
