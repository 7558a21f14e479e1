_base_ = ['./ssdlite_mobilenetv2_coco_fp32.py', '../_base_/datasets/voc0712.py']

model = dict(bbox_head=dict(num_classes=20))
train_dataloader = dict(
    dataset=dict(
        # the RepeatDataset of the twin
        dataset=dict(
            _delete_=True,
            type='ConcatDataset',
            # VOCDataset tells its year in the metainfo, which ConcatDataset would refuse to join
            ignore_keys=['dataset_type'],
            datasets=[dict(**part, pipeline=_base_.train_pipeline) for part in _base_.voc_parts])))
val_dataloader = dict(
    dataset=dict(_delete_=True, **_base_.voc_test, pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, **_base_.voc_evaluator)
test_evaluator = val_evaluator
