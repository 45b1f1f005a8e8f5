//! The table of models: name, published parameters and multiply-adds, source.

use super::Published;

/// A model with published figures.
pub(super) struct Row {
    /// A name in the grammar of its family.
    pub name: &'static str,
    pub published: Published,
}

const HE: &str = "He et al. 2015, arXiv:1512.03385";
const V15: &str = "He et al. 2015 with the stride in the 3x3, as torchvision";
const PREACT: &str = "He et al. 2016, arXiv:1603.05027";
const DEPTH: &str = "Huang et al. 2016, arXiv:1603.09382, its shortcuts as He et al. 2015";
const XIE: &str = "Xie et al. 2017, arXiv:1611.05431";
const XIE_TV: &str = "Xie et al. 2017, torchvision's width";
const WIDE: &str = "Zagoruyko and Komodakis 2016, arXiv:1605.07146, as torchvision";
const HUANG: &str = "Huang et al. 2017, arXiv:1608.06993";
const VGG: &str = "Simonyan and Zisserman 2014, arXiv:1409.1556";
const ALEX: &str = "Krizhevsky 2014, arXiv:1404.5997, as torchvision";

/// A row; `macs` is in units of ten thousand.
const fn row(name: &'static str, parameters: u64, macs: u64, source: &'static str) -> Row {
    Row { name, published: Published { parameters, macs: macs * 10_000, source } }
}

/// Every model with published figures.
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    row("resnet20_cifar",                         269_722,     4_055,     HE),
    row("resnet32_cifar",                         464_154,     6_886,     HE),
    row("resnet44_cifar",                         658_586,     9_717,     HE),
    row("resnet56_cifar",                         853_018,     12_549,    HE),
    row("resnet110_cifar",                        1_727_962,   25_289,    HE),
    row("resnet1202_cifar",                       19_421_274,  282_924,   HE),
    row("resnet20_cifar_option_b",                272_474,     4_081,     HE),
    row("resnet32_cifar_option_b",                466_906,     6_912,     HE),
    row("resnet44_cifar_option_b",                661_338,     9_744,     HE),
    row("resnet56_cifar_option_b",                855_770,     12_575,    HE),
    row("resnet110_cifar_option_b",               1_730_714,   25_315,    HE),
    row("resnet1202_cifar_option_b",              19_424_026,  282_950,   HE),
    row("plain20_cifar",                          269_722,     4_055,     HE),
    row("plain32_cifar",                          464_154,     6_886,     HE),
    row("plain44_cifar",                          658_586,     9_717,     HE),
    row("plain56_cifar",                          853_018,     12_549,    HE),
    row("plain110_cifar",                         1_727_962,   25_289,    HE),
    row("resnet18",                               11_689_512,  181_407,   HE),
    row("resnet34",                               21_797_672,  366_376,   HE),
    row("resnet50",                               25_557_032,  408_918,   V15),
    row("resnet101",                              44_549_160,  780_141,   V15),
    row("resnet152",                              60_192_808,  1_151_363, V15),
    row("resnet200",                              64_673_832,  1_500_748, V15),
    row("resnet50_v1",                            25_557_032,  385_797,   HE),
    row("resnet101_v1",                           44_549_160,  757_019,   HE),
    row("resnet152_v1",                           60_192_808,  1_128_242, HE),
    row("resnet200_v1",                           64_673_832,  1_477_627, HE),
    row("resnet18_option_a",                      11_515_688,  179_481,   HE),
    row("resnet18_option_c",                      12_043_816,  187_830,   HE),
    row("resnet34_option_a",                      21_623_848,  364_449,   HE),
    row("resnet34_option_c",                      22_716_840,  383_075,   HE),
    row("plain18",                                11_515_688,  179_481,   HE),
    row("plain34",                                21_623_848,  364_449,   HE),
    row("resnet20_cifar_bn_after_add",            269_722,     4_055,     PREACT),
    row("resnet20_cifar_relu_before_add",         269_722,     4_055,     PREACT),
    row("resnet20_cifar_relu_only_preact",        269_722,     4_055,     PREACT),
    row("resnet20_cifar_full_preact",             269_722,     4_055,     PREACT),
    row("resnet110_cifar_bn_after_add",           1_727_962,   25_289,    PREACT),
    row("resnet110_cifar_relu_before_add",        1_727_962,   25_289,    PREACT),
    row("resnet110_cifar_relu_only_preact",       1_727_962,   25_289,    PREACT),
    row("resnet110_cifar_full_preact",            1_727_962,   25_289,    PREACT),
    row("resnet110_cifar_option_b_full_preact",   1_730_522,   25_315,    PREACT),
    row("resnet20_cifar_conv1x1",                 283_962,     4_265,     PREACT),
    row("resnet110_cifar_conv1x1",                1_826_202,   26_678,    PREACT),
    row("resnet164_bottleneck_cifar",             1_704_154,   24_450,    PREACT),
    row("resnet1001_bottleneck_cifar",            10_328_602,  148_785,   PREACT),
    row("preact_resnet164_cifar",                 1_703_258,   24_450,    PREACT),
    row("preact_resnet1001_cifar",                10_327_706,  148_785,   PREACT),
    row("resnet110_cifar_survival05",             1_727_962,   25_289,    DEPTH),
    row("resnet1202_cifar_survival05",            19_421_274,  282_924,   DEPTH),
    row("resnext50_32x4d",                        25_028_904,  423_048,   XIE),
    row("resnext50_2x40d",                        25_425_000,  412_451,   XIE),
    row("resnext50_4x24d",                        25_292_968,  415_983,   XIE),
    row("resnext50_8x14d",                        25_603_016,  426_741,   XIE),
    row("resnext101_32x4d",                       44_177_704,  797_000,   XIE),
    row("resnext101_64x4d",                       83_455_272,  1_546_027, XIE),
    row("resnext101_32x8d",                       88_791_336,  1_641_402, XIE_TV),
    row("resnext29_1x64d_cifar",                  4_914_250,   74_837,    XIE),
    row("resnext29_8x64d_cifar",                  34_426_698,  538_727,   XIE),
    row("resnext29_16x64d_cifar",                 68_155_210,  1_068_887, XIE),
    row("resnext29_32x4d_cifar",                  4_775_754,   77_406,    XIE),
    row("wide_resnet50_2",                        68_883_240,  1_139_802, WIDE),
    row("wide_resnet101_2",                       126_886_696, 2_275_305, WIDE),
    row("densenet121",                            7_978_856,   283_416,   HUANG),
    row("densenet161",                            28_681_000,  772_791,   HUANG),
    row("densenet169",                            14_149_480,  335_984,   HUANG),
    row("densenet201",                            20_013_928,  429_137,   HUANG),
    row("densenet264",                            33_337_704,  575_165,   HUANG),
    row("densenet40_k12_cifar",                   1_019_722,   26_481,    HUANG),
    row("densenet100_k12_cifar",                  6_979_642,   176_952,   HUANG),
    row("densenet100_k24_cifar",                  27_249_082,  688_935,   HUANG),
    row("densenet_bc100_k12_cifar",               769_162,     28_793,    HUANG),
    row("densenet_bc250_k24_cifar",               15_324_406,  541_879,   HUANG),
    row("densenet_bc190_k40_cifar",               25_624_430,  930_195,   HUANG),
    row("vgg11",                                  132_863_336, 760_909,   VGG),
    row("vgg11_bn",                               132_868_840, 760_909,   VGG),
    row("vgg13",                                  133_047_848, 1_130_847, VGG),
    row("vgg13_bn",                               133_053_736, 1_130_847, VGG),
    row("vgg16",                                  138_357_544, 1_547_026, VGG),
    row("vgg16_bn",                               138_365_992, 1_547_026, VGG),
    row("vgg19",                                  143_667_240, 1_963_206, VGG),
    row("vgg19_bn",                               143_678_248, 1_963_206, VGG),
    row("alexnet",                                61_100_840,  71_419,    ALEX),
];
