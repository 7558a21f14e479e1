_base_ = ['./ssdlite_mobilenetv2_digits_fp32.py', '../_base_/int8.py']
