# Paths of UCF-101, split 1, as mmaction2's guide lays them out; for configs of Kinetics-400 twins.
ucf101_train = dict(
    ann_file='data/ucf101/ucf101_train_split_1_videos.txt',
    data_prefix=dict(video='data/ucf101/videos'))
ucf101_val = dict(
    ann_file='data/ucf101/ucf101_val_split_1_videos.txt',
    data_prefix=dict(video='data/ucf101/videos'))
