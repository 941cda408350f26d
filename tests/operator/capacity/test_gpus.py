import pytest

from quire_operator.capacity import (
    GPUS,
    CapacityError,
    Link,
    find_gpu,
    gib,
    gpu_of_product,
    nvlink_products,
    parse_bytes,
)


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("H200", "NVIDIA-H200"),
        ("h100", "NVIDIA-H100-80GB-HBM3"),
        ("H100-80GB", "NVIDIA-H100-80GB-HBM3"),
        ("NVIDIA-H100-NVL", "NVIDIA-H100-NVL"),
        ("NVIDIA A10", "NVIDIA-A10"),
        ("a100-40gb", "NVIDIA-A100-SXM4-40GB"),
        ("rtx 4090", "NVIDIA-GeForce-RTX-4090"),
        ("T4", "Tesla-T4"),
    ],
)
def test_people_name_gpus_in_many_ways(name: str, product: str) -> None:
    assert find_gpu(name).product == product


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(CapacityError, match="GPU 'H2000' is not known; did you mean H200"):
        find_gpu("H2000")


def test_every_product_and_alias_is_one_gpu() -> None:
    assert all(find_gpu(gpu.product) is find_gpu(gpu.alias) is gpu for gpu in GPUS)


def test_a_time_sliced_product_is_the_gpu_itself_and_a_slice_is_none() -> None:
    assert gpu_of_product("NVIDIA-L4-SHARED") is find_gpu("L4")
    assert gpu_of_product("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb") is None


def test_sxm_and_nvl_products_have_nvlink_for_as_many_gpus_as_it_joins() -> None:
    assert "NVIDIA-H100-NVL" in nvlink_products(2)
    assert "NVIDIA-H100-NVL" not in nvlink_products(4)
    assert "NVIDIA-H200-NVL" in nvlink_products(4)
    assert nvlink_products(1) == ()
    assert not {"NVIDIA-L40S", "NVIDIA-H100-PCIe"} & set(nvlink_products(2))
    assert all(find_gpu(product).link is not Link.NONE for product in nvlink_products(2))


@pytest.mark.parametrize(
    ("quantity", "num_bytes"),
    [
        ("16Gi", 16 << 30),
        ("16G", 16 * 10**9),
        ("1.5Gi", 3 << 29),
        ("100Mi", 100 << 20),
        ("500k", 500_000),
        ("1e9", 10**9),
        (123, 123),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(quantity: str | int, num_bytes: int) -> None:
    assert parse_bytes(quantity) == num_bytes


@pytest.mark.parametrize("quantity", ["", "16GB", "-1", "Gi", "16 Gi"])
def test_what_is_no_quantity_is_refused(quantity: str) -> None:
    with pytest.raises(CapacityError, match="is no size; write it as 16Gi"):
        parse_bytes(quantity)


def test_sizes_are_shown_in_gib() -> None:
    assert gib(22.49 * (1 << 30)) == "22.5 GiB"
